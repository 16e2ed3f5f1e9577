"""What a self-contained page is made of: words and numbers, charts, maps of positions, and the frame around them."""
