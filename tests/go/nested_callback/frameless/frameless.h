unsigned long frameless_outer(unsigned long depth);
