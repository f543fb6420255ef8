// Tables of whole numbers with the NEON of every arm64 processor.
#include "whole_neon.h"

const mgqe_whole_kernels mgqe_whole_neon = whole_kernels<Neon>();
