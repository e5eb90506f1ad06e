"""One file a model family: its Hugging Face config and tensor names, there and back."""
