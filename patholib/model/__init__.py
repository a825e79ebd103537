"""Recipes, networks, weights, losses, schedules, augmentation."""
