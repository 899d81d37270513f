// Sets the wall clock of the process that preloads this, and no other's: the
// seconds in the file that GOPROF_TEST_CLOCK names are added to it.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
	char text[32] = {0};
	int failed = (int)syscall(SYS_clock_gettime, clock, time);
	if (failed || clock != CLOCK_REALTIME)
		return failed;
	int file = open(getenv("GOPROF_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
	if (file < 0 || read(file, text, sizeof text - 1) < 0)
		abort();
	close(file);
	time->tv_sec += atoll(text);
	return 0;
}
