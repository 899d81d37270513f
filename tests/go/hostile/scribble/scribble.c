#define _GNU_SOURCE
#include "scribble.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROUNDS = 16, SPINS = 1000000, LIES = 8 * 512, CHAIN = 1 << 17 };

/* Pages of words that lead to one another, or astray; rewritten all the time. */
static volatile uint64_t *lies;
/* A chain of frames longer than any stack. */
static uint64_t chain[2 * CHAIN];
/* Two frames that call each other. */
static uint64_t loop[4];

enum { ASTRAY = 18 };
static uint64_t astray[ASTRAY];

static uint64_t dice(uint64_t *state)
{
	*state = *state * 6364136223846793005ul + 1442695040888963407ul;
	return *state >> 33;
}

static void lie(uint64_t *state)
{
	for (int i = 0; i < LIES; i++) {
		uint64_t kind = dice(state) % 8;
		uint64_t inside = (uint64_t)lies + dice(state) % (LIES * 8);
		uint64_t word = kind < 5 ? inside & ~7ul : kind < 7 ? astray[dice(state) % ASTRAY]
								    : dice(state) % 64;
		lies[i] = word;
	}
}

/*
 * Burns CPU with these values in the frame pointer, the stack pointer (unless
 * 0) and, where g is in a register, in g (unless 0).
 */
static inline __attribute__((always_inline)) void burn(uint64_t fp, uint64_t sp, uint64_t g)
{
	uint64_t spins = SPINS;
#if defined(__x86_64__)
	(void)g;
	__asm__ volatile("movq %%rbp, %%r12\n"
			 "movq %%rsp, %%r13\n"
			 "movq %%rcx, %%rbp\n"
			 "testq %%rdx, %%rdx\n"
			 "jz 1f\n"
			 "movq %%rdx, %%rsp\n"
			 "1: decq %%rax\n"
			 "jnz 1b\n"
			 "movq %%r13, %%rsp\n"
			 "movq %%r12, %%rbp\n"
			 : "+a"(spins)
			 : "c"(fp), "d"(sp)
			 : "r12", "r13", "cc", "memory");
#elif defined(__aarch64__)
	register uint64_t left __asm__("x12") = spins;
	register uint64_t frame __asm__("x13") = fp;
	register uint64_t stack __asm__("x14") = sp;
	register uint64_t routine __asm__("x15") = g;
	__asm__ volatile("mov x9, x29\n"
			 "mov x10, sp\n"
			 "mov x11, x28\n"
			 "mov x29, x13\n"
			 "cbz x14, 1f\n"
			 "mov sp, x14\n"
			 "1: cbz x15, 2f\n"
			 "mov x28, x15\n"
			 "2: subs x12, x12, #1\n"
			 "b.ne 2b\n"
			 "mov x28, x11\n"
			 "mov sp, x10\n"
			 "mov x29, x9\n"
			 : "+r"(left)
			 : "r"(frame), "r"(stack), "r"(routine)
			 : "x9", "x10", "x11", "cc", "memory");
#endif
}

/* A signal would be handled on the registers as they are. */
static sigset_t no_signals(void)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	return before;
}

static void signals(sigset_t before)
{
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

__attribute__((noinline)) void spin_in_loop(uint64_t *slot)
{
	(void)slot;
	sigset_t before = no_signals();
	for (int i = 0; i < ROUNDS; i++)
		burn((uint64_t)&loop[0], 0, 0);
	signals(before);
}

__attribute__((noinline)) void spin_in_chain(uint64_t *slot)
{
	(void)slot;
	sigset_t before = no_signals();
	for (int i = 0; i < ROUNDS; i++)
		burn((uint64_t)&chain[0], 0, 0);
	signals(before);
}

__attribute__((noinline)) void spin_off_frame(uint64_t *slot)
{
	(void)slot;
	sigset_t before = no_signals();
	for (int i = 0; i < ASTRAY; i++)
		burn(astray[i], 0, 0);
	signals(before);
}

__attribute__((noinline)) void spin_off_stack(uint64_t *slot)
{
	(void)slot;
	sigset_t before = no_signals();
	for (int i = 0; i < ASTRAY; i++)
		burn(astray[(i + 5) % ASTRAY], astray[i], 0);
	signals(before);
}

static void burn_with_g(uint64_t *slot, uint64_t g)
{
	uint64_t kept = 0;
	if (slot) {
		kept = *slot;
		*slot = g;
	}
	burn(g, 0, g);
	if (slot)
		*slot = kept;
}

__attribute__((noinline)) void spin_off_g(uint64_t *slot)
{
	sigset_t before = no_signals();
	for (int i = 0; i < ASTRAY; i++)
		burn_with_g(slot, astray[i]);
	signals(before);
}

__attribute__((noinline)) void spin_in_lies(uint64_t *slot)
{
	static uint64_t state = 1;
	sigset_t before = no_signals();
	for (int i = 0; i < ROUNDS; i++)
		burn_with_g(slot, (uint64_t)lies + (dice(&state) % (LIES * 4) & ~7ul));
	signals(before);
}

static void *rewrite(void *unused)
{
	uint64_t state = 7;
	no_signals();
	for (;;) {
		lie(&state);
		usleep(200);
	}
	return unused;
}

/* A thread that Go knows nothing of. */
static void *spin_without_go(void *unused)
{
	for (;;) {
		spin_in_loop(NULL);
		spin_off_frame(NULL);
		spin_off_stack(NULL);
	}
	return unused;
}

static uint64_t map(size_t bytes, int protection)
{
	return (uint64_t)mmap(NULL, bytes, protection,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* Makes the memory that leads astray; returns what to use for labels. */
void *prepare(void)
{
	const int both = PROT_READ | PROT_WRITE;
	uint64_t readable = map(LIES * 8 + 4096, both);
	munmap((void *)(readable + LIES * 8), 4096);
	lies = (uint64_t *)readable;
	uint64_t empty = (uint64_t)mmap(NULL, 4096, PROT_READ, MAP_SHARED,
					memfd_create("empty", 0), 0);
	uint64_t values[ASTRAY] = {
		1, 8, 4096, UINT64_MAX, UINT64_MAX - 7,
		1ul << 63, 1ul << 62, 0xffffffff81000000, 0xffff888000000000,
		0xffffffffff600000, 0x00007ffffffff000, 0x00007ffffffffff8,
		map(1ul << 30, both), map(4096, PROT_NONE), empty,
		/* The last word, the last two, and across both. */
		readable + LIES * 8 - 8, readable + LIES * 8 - 16, readable + LIES * 8 - 12,
	};
	for (int i = 0; i < ASTRAY; i++)
		astray[i] = values[i];
	for (int i = 0; i < CHAIN; i++) {
		chain[2 * i] = (uint64_t)&chain[2 * ((i + 1) % CHAIN)];
		chain[2 * i + 1] = astray[i % ASTRAY];
	}
	loop[0] = (uint64_t)&loop[2];
	loop[2] = (uint64_t)&loop[0];
	loop[1] = loop[3] = (uint64_t)spin_in_loop;
	uint64_t state = 3;
	lie(&state);
	pthread_t thread;
	pthread_create(&thread, NULL, rewrite, NULL);
	pthread_create(&thread, NULL, spin_without_go, NULL);
	return (void *)lies;
}
