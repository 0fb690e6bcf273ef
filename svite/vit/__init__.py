"""The timm Vision Transformer: its parts, what it attends to, what it costs, and how it gets smaller."""
