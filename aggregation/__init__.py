"""Pure maths on arrays: fold actions into state, finalise at `now_ms`, ID-ize, assemble tensors."""
