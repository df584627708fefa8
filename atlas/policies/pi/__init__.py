"""pi0 and pi0.5: PaliGemma reads images and words, and an action expert reads what each layer of it has said."""
