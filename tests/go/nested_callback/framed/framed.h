unsigned long framed_outer(unsigned long depth);
