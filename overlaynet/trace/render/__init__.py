"""Pictures of a packet's way: the same story for a terminal, a page, a drawing, a Markdown file."""
