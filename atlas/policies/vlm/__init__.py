"""Policies on image-text models of the Hugging Face hub: a head reads the hidden states of such a model."""
