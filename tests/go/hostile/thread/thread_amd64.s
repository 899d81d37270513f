#include "textflag.h"

// The first word at FS is its own address.
TEXT ·current(SB), NOSPLIT, $0-16
	MOVQ	0(FS), AX
	MOVQ	AX, base+0(FP)
	MOVQ	(TLS), CX
	MOVQ	CX, routine+8(FP)
	RET
