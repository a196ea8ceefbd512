"""The line or plane on which a surface is taken: flags, chosen directions, a training's path."""
