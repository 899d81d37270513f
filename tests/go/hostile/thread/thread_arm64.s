#include "textflag.h"

TEXT ·current(SB), NOSPLIT, $0-16
	MOVD	ZR, base+0(FP)
	MOVD	ZR, routine+8(FP)
	RET
