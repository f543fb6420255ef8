// Tables of bytes in registers, with NEON.
#ifndef MGQE_BYTE_TABLE_H
#define MGQE_BYTE_TABLE_H

#include <arm_neon.h>
#include <stdint.h>

namespace {

// 16 entries, or a multiple of 64.
template <int kEntries>
struct ByteTable {
    static constexpr int kQuarters = kEntries < 64 ? 1 : kEntries / 64;
    uint8x16x4_t quarters[kQuarters];
    explicit ByteTable(const uint8_t* from) {
        if (kEntries == 16) {
            quarters[0].val[0] = vld1q_u8(from);
            return;
        }
        for (int q = 0; q < kQuarters; ++q) quarters[q] = vld1q_u8_x4(from + 64 * q);
    }
    uint8x16_t look_up(uint8x16_t codes) const {
        if (kEntries == 16) return vqtbl1q_u8(quarters[0].val[0], codes);
        // A code beyond a table leaves what is there; one below wraps around to beyond.
        uint8x16_t found = vqtbl4q_u8(quarters[0], codes);
        for (int q = 1; q < kQuarters; ++q)
            found = vqtbx4q_u8(found, quarters[q], vsubq_u8(codes, vdupq_n_u8(static_cast<uint8_t>(64 * q))));
        return found;
    }
};

}  // namespace

#endif
