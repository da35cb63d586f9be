"""Arrays between the two sides: made when they are asked for, copied tile by tile, compared, and placed."""
