// Tables of whole numbers with NEON that adds four products of bytes at once.
#include "whole_neon.h"

const mgqe_whole_kernels mgqe_whole_dotprod = whole_kernels<Neon>();
