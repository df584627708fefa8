"""Policies on image-text models of the Hugging Face hub: a head reads what such a model makes of a scene."""
