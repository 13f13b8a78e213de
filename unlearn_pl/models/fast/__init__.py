"""What only computes the same faster: packed rows, frozen products, LoRA layers that keep less."""
