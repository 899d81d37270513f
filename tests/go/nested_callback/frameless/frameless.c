#include "frameless.h"
#include "_cgo_export.h"

/* Enough live values over the call that the compiler takes rbp for one. */
__attribute__((noinline)) unsigned long frameless_inner(unsigned long depth)
{
	unsigned long a = depth, b = a * 3, c = a * 5, d = a * 7, e = a * 11, f = a * 13;
	__asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
	unsigned long x = goFrameless(depth);
	return a + b + c + d + e + f + x;
}

__attribute__((noinline)) unsigned long frameless_after(unsigned long x)
{
	for (int i = 0; i < 50000; i++)
		x = x * 6364136223846793005ul + 1442695040888963407ul;
	return x;
}

/* The additions after the calls keep them from becoming jumps. */
unsigned long frameless_outer(unsigned long depth)
{
	return frameless_after(frameless_inner(depth) + 1) + 1;
}
