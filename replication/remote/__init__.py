"""The far side: what it is called, how it is reached and trusted, and the program we start there."""
