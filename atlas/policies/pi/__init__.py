"""pi0 and pi0.5: PaliGemma reads images and words, and an action expert reads the keys and values of its layers."""
