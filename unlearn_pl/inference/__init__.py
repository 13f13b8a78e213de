"""A language model asked things: texts, likelihoods, next tokens, scores of tokens; many rows at once, exactly."""
