#include "framed.h"
#include "_cgo_export.h"

/* The addition after the call keeps it from becoming a jump. */
__attribute__((noinline)) unsigned long framed_inner(unsigned long depth)
{
	return goFramed(depth) + 1;
}

__attribute__((noinline)) unsigned long framed_after(unsigned long x)
{
	for (int i = 0; i < 50000; i++)
		x = x * 6364136223846793005ul + 1442695040888963407ul;
	return x;
}

unsigned long framed_outer(unsigned long depth)
{
	return framed_after(framed_inner(depth) + 1) + 1;
}
