// Item biases as 256 levels, so that the byte filter treats them as one more code of a row.
#include <math.h>

#include "isa.h"
#include "mgqe_native.h"
#include "select.h"

int32_t mgqe_bias_codes(const mgqe_table* table, const float* bias, uint8_t* codes, float* levels) {
    if (!mgqe_well_formed(*table)) return MGQE_BAD_ARGUMENT;
    const int64_t n = table->num_embeddings;
    double low = 0, high = 0;
    for (int64_t i = 0; i < n; ++i) {
        low = i == 0 || bias[i] < low ? bias[i] : low;
        high = i == 0 || bias[i] > high ? bias[i] : high;
    }
    const double step = (high - low) / 255;
    for (int c = 0; c < 256; ++c) levels[c] = static_cast<float>(low + c * step);
    levels[255] = static_cast<float>(high);
    Walk walk(*table);
    for (int64_t i = 0; i < n; ++i) {
        const Place place = walk.next();
        if (place.tier < 0 || place.rank >= table->tiers[place.tier].rows) return MGQE_CORRUPT;
        int c = step > 0 ? static_cast<int>(ceil((bias[i] - low) / step)) : 255;
        c = c < 0 ? 0 : c > 255 ? 255 : c;
        while (c < 255 && levels[c] < bias[i]) ++c;  // rounding
        codes[table->starts[place.tier] + place.rank] = static_cast<uint8_t>(c);
    }
    return MGQE_OK;
}
