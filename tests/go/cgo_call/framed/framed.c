#include "framed.h"

__attribute__((noinline)) static unsigned long framed_inner(unsigned long x)
{
	for (int i = 0; i < 500000; i++)
		x = x * 6364136223846793005ul + 1442695040888963407ul;
	return x;
}

/* The addition after the call keeps it from becoming a jump. */
unsigned long framed_outer(unsigned long seed)
{
	return framed_inner(seed) + 1;
}
