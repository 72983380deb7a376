"""What changed on a brick: records, the segments they are kept in, and the recorder that makes them."""
