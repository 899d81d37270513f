#include "visit.h"
#include "_cgo_export.h"

/* Enough live values over the call that the compiler takes rbp for one. */
__attribute__((noinline)) unsigned long visit_inner(unsigned long x)
{
	unsigned long a = x, b = x * 3, c = x * 5, d = x * 7, e = x * 11, f = x * 13;
	for (int i = 0; i < 2; i++) {
		unsigned long y = goVisit(a + b);
		a += y; b ^= y; c += a; d ^= b; e += c; f ^= d;
	}
	return a + b + c + d + e + f;
}

/* Spends as long in C once the callback is over. */
__attribute__((noinline)) unsigned long visit_after(unsigned long x)
{
	for (int i = 0; i < 400000; i++)
		x = x * 6364136223846793005ul + 1442695040888963407ul;
	return x;
}

/* The additions after the calls keep them from becoming jumps. */
unsigned long visit_outer(unsigned long seed)
{
	return visit_after(visit_inner(seed) + 1) + 1;
}
