"""What people look at: the pages and the terminal tables of evaluation and inspection."""
