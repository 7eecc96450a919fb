"""The prompts of published models, as openpi writes them."""

from robostack.core.text.prompt import Prompt

PI0 = Prompt("{task}\n", clean_task=True)
PI05 = Prompt("Task: {task}, State: {state};\nAction: ", clean_task=True)
