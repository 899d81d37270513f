unsigned long visit_outer(unsigned long seed);
