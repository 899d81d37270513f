// A C program that is a Go process only once it has loaded the library named
// by its argument, or was linked with the archive.
#include <dlfcn.h>
#include <stdio.h>

extern void RuntimeFacts(void) __attribute__((weak));

int main(int argc, char **argv) {
	void (*run)(void) = RuntimeFacts;
	if (argc > 1) {
		void *library = dlopen(argv[1], RTLD_NOW);
		if (library == NULL) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
		run = (void (*)(void))dlsym(library, "RuntimeFacts");
	}
	run();
	return 0;
}
