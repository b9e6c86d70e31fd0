"""Parts of scripts/weight_recipes.py."""
