// A C program that is a Go process only once it has loaded the library named by
// its second argument, after as many milliseconds as the first says; or from the
// start, where it was linked with the library.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern void GoBegin(void) __attribute__((weak));
extern unsigned long GoWork(unsigned long) __attribute__((weak));

static volatile unsigned long sink;

__attribute__((noinline)) void work_in_go(unsigned long (*work)(unsigned long)) {
	for (;;) {
		sink = work(sink);
	}
}

int main(int argc, char **argv) {
	void (*begin)(void) = GoBegin;
	unsigned long (*work)(unsigned long) = GoWork;
	printf("ready\n");
	fflush(stdout);
	alarm(300);
	usleep(argc > 1 ? 1000 * atoi(argv[1]) : 0);
	if (argc > 2) {
		void *library = dlopen(argv[2], RTLD_NOW);
		if (library == NULL) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
		begin = (void (*)(void))dlsym(library, "GoBegin");
		work = (unsigned long (*)(unsigned long))dlsym(library, "GoWork");
	}
	begin();
	work_in_go(work);
	return 0;
}
