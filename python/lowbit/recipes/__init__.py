"""Recipes: what to do to a model, as data."""

from .recipe import BASELINES, METHODS, Recipe

__all__ = ["BASELINES", "METHODS", "Recipe"]
