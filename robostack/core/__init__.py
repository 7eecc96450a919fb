"""What every policy is built from: attention, transformer, vision, text and flow."""
