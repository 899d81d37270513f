unsigned long native_outer(unsigned long seed);
