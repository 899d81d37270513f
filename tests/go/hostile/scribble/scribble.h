#include <stdint.h>

void *prepare(void);
void spin_in_loop(uint64_t *slot);
void spin_in_chain(uint64_t *slot);
void spin_off_frame(uint64_t *slot);
void spin_off_stack(uint64_t *slot);
void spin_off_g(uint64_t *slot);
void spin_in_lies(uint64_t *slot);
