// A C program that is a Go process only once it has loaded the libraries named by
// its arguments but the first, each after as many milliseconds as that says; or
// from the start, where it was linked with one.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern void GoBegin(void) __attribute__((weak));
extern unsigned long GoWork(unsigned long) __attribute__((weak));

static volatile unsigned long sink;

enum { MAX_LIBRARIES = 4 };

typedef unsigned long (*work_function)(unsigned long);

__attribute__((noinline)) void work_in_go(const work_function *works, int count) {
	for (int i = 0;; i = (i + 1) % count) {
		sink = works[i](sink);
	}
}

int main(int argc, char **argv) {
	work_function works[MAX_LIBRARIES] = {GoWork};
	int count = GoWork != NULL;
	printf("ready\n");
	fflush(stdout);
	alarm(300);
	for (int i = 2; i < argc && count < MAX_LIBRARIES; i++) {
		usleep(1000 * atoi(argv[1]));
		void *library = dlopen(argv[i], RTLD_NOW);
		if (library == NULL) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
		void (*begin)(void) = (void (*)(void))dlsym(library, "GoBegin");
		works[count++] = (work_function)dlsym(library, "GoWork");
		begin();
	}
	if (argc <= 2) {
		GoBegin();
	}
	work_in_go(works, count);
	return 0;
}
