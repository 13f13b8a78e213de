"""Loss terms over lazy forward passes: pure functions of tensors."""
