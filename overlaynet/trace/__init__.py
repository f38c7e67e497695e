"""What a packet did on its way: captured frames and what they mean."""
