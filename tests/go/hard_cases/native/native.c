#include "native.h"

/* Enough live values that the compiler takes the frame pointer's register for
 * one of them. */
__attribute__((noinline)) static unsigned long native_inner(unsigned long x)
{
	unsigned long a = x, b = x + 1, c = x + 2, d = x + 3, e = x + 4, f = x + 5,
		      g = x + 6, h = x + 7, i = x + 8, j = x + 9, k = x + 10;
	for (unsigned long n = 0; n < 20000; n++) {
		a = a * 3 + b; b = b * 5 + c; c = c * 7 + d; d = d * 9 + e;
		e = e * 11 + f; f = f * 13 + g; g = g * 15 + h; h = h * 17 + i;
		i = i * 19 + j; j = j * 21 + k; k = k * 23 + a + n;
		__asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e),
				      "+r"(f), "+r"(g), "+r"(h), "+r"(i), "+r"(j),
				      "+r"(k));
	}
	return a + b + c + d + e + f + g + h + i + j + k;
}

/* The addition after the call keeps it from becoming a jump. */
unsigned long native_outer(unsigned long seed)
{
	return native_inner(seed) + 1;
}
