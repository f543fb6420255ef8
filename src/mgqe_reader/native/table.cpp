#include "table.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <new>

#include "half.h"

namespace {

constexpr int64_t kAlignment = 64;
// What kernels that multiply bytes take: codes of a row, numbers of a codebook less than so many, bits of a level.
constexpr int64_t kMostCodes = 1024, kMostBook = 1 << 16;
constexpr int32_t kByteBits = 8, kLevelBits = 7;
constexpr int64_t kBlockBits = 256;

int64_t filled_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

bool finite(const Tensor& tensor) {
    const int64_t n = tensor.size();
    bool good = true;
    if (tensor.dtype == DType::kF32)
        for (int64_t i = 0; i < n; ++i) good &= isfinite(tensor.as<float>()[i]) != 0;
    if (tensor.dtype == DType::kF16)
        for (int64_t i = 0; i < n; ++i) good &= (tensor.as<uint16_t>()[i] & 0x7c00) != 0x7c00;
    return good;
}

void require_finite(const std::string& name, const Tensor& tensor) {
    if (!finite(tensor)) refuse("tensor '" + name + "' holds NaN or infinity");
}

void require_scales(const std::string& name, const Tensor& scales) {
    require_finite(name, scales);
    for (int64_t i = 0; i < scales.size(); ++i)
        if (!(scales.as<float>()[i] > 0)) refuse("tensor '" + name + "' holds a scale that is not positive");
}

// Numbers [begin, begin + n) of a tensor as float32, times a scale where they are int8.
void to_floats(const Tensor& tensor, int64_t begin, int64_t n, float scale, float* out) {
    switch (tensor.dtype) {
        case DType::kF32:
            memcpy(out, tensor.as<float>() + begin, static_cast<size_t>(n) * sizeof(float));
            return;
        case DType::kF16:
            for (int64_t i = 0; i < n; ++i) half_to_float(tensor.as<uint16_t>() + begin + i, out + i);
            return;
        default:
            for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(tensor.as<int8_t>()[begin + i]) * scale;
    }
}

// Whether a codebook of this shape (pieces, centroids, width) can serve a tier.
bool serves(const TierShape& tier, const std::vector<int64_t>& shape, int64_t dim) {
    const int64_t pieces = shape[0], width = shape[2], D = tier.num_subspaces;
    const bool separate = pieces <= dim && width <= dim && pieces * width == dim && pieces % D == 0;
    const bool shared = pieces == 1 && width <= dim && D * width == dim;
    return (separate || shared) && tier.num_centroids <= shape[1] && shape[1] <= INT32_MAX;
}

// The centroids that coordinates with codes of as many bits share, as mgqe_tier's `levels`; false where they do not.
bool find_levels(const uint8_t* book, const mgqe_piece* pieces, int64_t D, uint8_t* levels) {
    const mgqe_piece* of_bits[kLevelBits + 1] = {};
    for (int64_t j = 0; j < D; ++j) {
        const mgqe_piece& piece = pieces[j];
        if (piece.width > 1 || piece.bits > kLevelBits) return false;
        const size_t n = size_t{1} << piece.bits;
        const mgqe_piece*& first = of_bits[piece.bits];
        if (!first) {
            first = &piece;
            memcpy(levels + (piece.bits == kLevelBits ? n : n - 1), book + piece.entry, n);
        } else if (memcmp(book + first->entry, book + piece.entry, n)) {
            return false;
        }
    }
    return true;
}

}  // namespace

void* Arena::zeros(int64_t n, size_t size) {
    const size_t bytes = static_cast<size_t>(std::max<int64_t>(n, 1)) * size;
    void* const made = ::operator new(bytes, std::align_val_t{kAlignment});
    kept_.emplace_back(made, [](void* each) { ::operator delete(each, std::align_val_t{kAlignment}); });
    return memset(made, 0, bytes);
}

void check_codes(const std::string& name, const Rows& rows, const TierShape& tier) {
    if (const int64_t used = tier.row_bits % 8) {
        uint32_t most = 0;
        for (int64_t i = 0; i < rows.n; ++i) most |= rows.data[(i + 1) * tier.row_bytes - 1];
        if (most >> used) refuse("tensor '" + name + "' has spare bits that are not zero");
    }
    if (!tier.code_bits.empty() || tier.num_centroids == int64_t{1} << tier.bits) return;
    int32_t most = -1;
    if (mgqe_max_code(rows.data, rows.n, tier.num_subspaces, tier.bits, &most, 1) != MGQE_OK)
        refuse("tensor '" + name + "' could not be read", MGQE_READER_NO_MEMORY);
    if (most >= tier.num_centroids)
        refuse("tensor '" + name + "' holds code " + number(most) + ", but num_centroids is " + number(tier.num_centroids));
}

Table::Table(Layout layout, Tensors others, const std::vector<Rows>& codes, const std::vector<Extent>& extents, Arena arena)
    : layout_(std::move(layout)), arena_(std::move(arena)) {
    read_books(others);
    read_map(others);
    read_matrix(others);
    if (others.has("fallback")) {
        const Tensor fallback = others.take("fallback", DType::kF32, {layout_.embedding_dim});
        require_finite("fallback", fallback);
        fallback_ = fallback.as<float>();
    }
    others.finish();
    const size_t m = layout_.tiers.size();
    for (size_t g = 0; g < m; ++g) check_codes("codes." + number(static_cast<int64_t>(g)), codes[g], layout_.tiers[g]);
    lay_out_bytes();
    starts_.push_back(0);
    for (size_t g = 0; g < m; ++g) add_tier(layout_.tiers[g], codes[g]);
    for (const Extent& extent : extents) add_tier(layout_.tiers[static_cast<size_t>(extent.tier)], extent.rows);
    table_.tiers = tiers_.data();
    table_.levels = levels_.data();
    table_.starts = starts_.data();
    table_.num_embeddings = starts_.back();
    table_.embedding_dim = layout_.embedding_dim;
    table_.num_coordinates = layout_.num_coordinates;
    table_.padding_idx = layout_.padding_idx;
    table_.num_tiers = static_cast<int32_t>(tiers_.size());
    table_.num_levels = static_cast<int32_t>(levels_.size());
    if (!levels_.empty()) {
        table_.mapped_tiers = static_cast<int32_t>(m);
        table_.last_tier = layout_.order.back();
    }
    table_.mapped_ids = starts_[static_cast<size_t>(table_.mapped_tiers)];
}

void Table::read_books(Tensors& others) {
    for (int32_t c = 0; c < layout_.num_codebooks; ++c) {
        const std::string name = "centroids." + number(c), scales_name = "scales." + number(c);
        const bool scaled = layout_.centroids == Stored::kInt8 && !layout_.whole();
        const DType dtype = dtype_of(layout_.centroids);
        if (!layout_.mixed()) {
            books_.push_back(others.take(name, dtype, {-1, -1, -1}));
            const std::vector<int64_t>& shape = books_.back().shape;
            for (size_t g = 0; g < layout_.tiers.size(); ++g)
                if (layout_.tiers[g].codebook == c && !serves(layout_.tiers[g], shape, layout_.embedding_dim))
                    refuse("tier " + number(static_cast<int64_t>(g)) + " does not fit the shape of its codebook, '" +
                           name + "'");
            scales_.push_back(scaled ? others.take(scales_name, DType::kF32, {shape[0]}) : Tensor{});
        } else {
            const int64_t D = static_cast<int64_t>(layout_.widths.size());
            books_.push_back(others.take(name, dtype, {layout_.codebook_length(c)}));
            scales_.push_back(scaled ? others.take(scales_name, DType::kF32, {D}) : Tensor{});
            const std::vector<int64_t> sizes = layout_.codebook_sizes(c);
            float* const flat = arena_.get<float>(books_.back().size() + MGQE_BOOK_ROOM);
            int64_t at = 0;
            for (size_t j = 0; j < sizes.size(); ++j) {
                const int64_t n = sizes[j] * layout_.widths[j];
                to_floats(books_.back(), at, n, scaled ? scales_.back().as<float>()[j] : 1.0f, flat + at);
                at += n;
            }
            flat_books_.push_back(flat);
        }
        require_finite(name, books_.back());
        if (scaled) require_scales(scales_name, scales_.back());
    }
    for (const TierShape& tier : layout_.tiers) {
        if (!layout_.mixed()) break;
        const std::vector<int64_t> sizes = layout_.codebook_sizes(tier.codebook);
        mgqe_piece* const pieces = arena_.get<mgqe_piece>(static_cast<int64_t>(sizes.size()));
        int64_t bit = 0, coordinate = 0, entry = 0;
        for (size_t j = 0; j < sizes.size(); ++j) {
            const int32_t width = static_cast<int32_t>(layout_.widths[j]), bits = tier.code_bits[j];
            pieces[j] = {bit, entry, bits, static_cast<int32_t>(coordinate), width, static_cast<int32_t>(sizes[j])};
            bit += bits;
            coordinate += width;
            entry += sizes[j] * width;
        }
        pieces_.push_back(pieces);
    }
}

void Table::read_matrix(Tensors& others) {
    if (layout_.matrix == Stored::kNone) return;
    const int64_t d = layout_.embedding_dim, L = layout_.num_coordinates, columns = filled_up(d, MGQE_MATRIX_STEP);
    const Tensor mean = others.take("mean", DType::kF32, {d});
    const Tensor matrix = others.take("matrix", dtype_of(layout_.matrix), {L, d});
    require_finite("mean", mean);
    require_finite("matrix", matrix);
    Tensor scales = {};
    if (layout_.matrix == Stored::kInt8) {
        scales = others.take("matrix_scales", DType::kF32, {L});
        require_scales("matrix_scales", scales);
    }
    float* const own_mean = arena_.get<float>(columns);
    memcpy(own_mean, mean.data, static_cast<size_t>(d) * sizeof(float));
    float* const own = arena_.get<float>(L * columns);
    for (int64_t l = 0; l < L; ++l)
        to_floats(matrix, l * d, d, scales.data ? scales.as<float>()[l] : 1.0f, own + l * columns);
    table_.mean = own_mean;
    table_.matrix = own;
    if (!layout_.whole()) return;
    const Tensor column_scales = others.take("column_scales", DType::kF32, {d});
    require_scales("column_scales", column_scales);
    float* const own_scales = arena_.get<float>(columns);
    memcpy(own_scales, column_scales.data, static_cast<size_t>(d) * sizeof(float));
    table_.column_scales = own_scales;
    whole_matrix_ = matrix.as<int8_t>();
    bool identity = L == d;
    for (int64_t i = 0; identity && i < L * d; ++i) identity = whole_matrix_[i] == (i / d == i % d);
    table_.diagonal = identity;
}

void Table::read_map(Tensors& others) {
    const std::vector<int64_t> lengths = layout_.level_lengths();
    for (size_t l = 0; l < lengths.size(); ++l) {
        const int64_t blocks = (lengths[l] + kBlockBits - 1) / kBlockBits, words = 4 * blocks;
        const std::string bits_name = "tier_map.bits." + number(static_cast<int64_t>(l));
        const std::string ranks_name = "tier_map.ranks." + number(static_cast<int64_t>(l));
        const uint64_t* const bits = others.take(bits_name, DType::kI64, {words}).as<uint64_t>();
        const int32_t* const ranks = others.take(ranks_name, DType::kI32, {blocks}).as<int32_t>();
        int64_t ones = 0;
        bool agree = true;
        for (int64_t word = 0; word < words; ++word) {
            if (word % 4 == 0) agree &= ranks[word / 4] == ones;
            ones += __builtin_popcountll(bits[word]);
        }
        const int32_t tier = layout_.order[l];
        if (ones != layout_.tiers[static_cast<size_t>(tier)].ids)
            refuse("tensor '" + bits_name + "' marks " + number(ones) + " ids, but tier " + number(tier) + " has " +
                   number(layout_.tiers[static_cast<size_t>(tier)].ids));
        for (int64_t word = lengths[l] / 64; word < words; ++word)
            if (bits[word] >> (word == lengths[l] / 64 ? lengths[l] % 64 : 0))
                refuse("tensor '" + bits_name + "' marks ids beyond the " + number(lengths[l]) + " that are left");
        if (!agree) refuse("tensor '" + ranks_name + "' disagrees with the bits it counts");
        levels_.push_back({bits, ranks, lengths[l], tier});
    }
}

void Table::lay_out_bytes() {
    level_bytes_.assign(layout_.tiers.size(), nullptr);
    if (!layout_.whole() || static_cast<int64_t>(layout_.widths.size()) > kMostCodes) return;
    for (const TierShape& tier : layout_.tiers)
        if (tier.bits > kByteBits) return;
    for (const Tensor& book : books_)
        if (book.size() >= kMostBook) return;
    for (const Tensor& book : books_) {
        uint8_t* const shifted = arena_.get<uint8_t>(book.size() + MGQE_BOOK_ROOM);
        for (int64_t i = 0; i < book.size(); ++i) shifted[i] = static_cast<uint8_t>(book.as<int8_t>()[i] + 128);
        byte_books_.push_back(shifted);
    }
    const int64_t d = layout_.embedding_dim, L = layout_.num_coordinates, columns = filled_up(d, MGQE_MATRIX_STEP);
    int8_t* const matrix = arena_.get<int8_t>(filled_up(L, 4) * columns);
    int32_t* const sums = arena_.get<int32_t>(columns);
    for (int64_t l = 0; l < L; ++l)
        for (int64_t t = 0; t < d; ++t) {
            matrix[(l / 4 * columns + t) * 4 + l % 4] = whole_matrix_[l * d + t];
            sums[t] -= 128 * whole_matrix_[l * d + t];
        }
    table_.byte_matrix = matrix;
    table_.byte_sums = sums;
    for (size_t g = 0; g < layout_.tiers.size(); ++g) {
        uint8_t* const levels = arena_.get<uint8_t>(2 << kLevelBits);
        const TierShape& tier = layout_.tiers[g];
        const uint8_t* const book = byte_books_[static_cast<size_t>(tier.codebook)];
        if (find_levels(book, pieces_[g], tier.num_subspaces, levels)) level_bytes_[g] = levels;
    }
}

void Table::add_tier(const TierShape& shape, const Rows& rows) {
    const size_t g = static_cast<size_t>(&shape - layout_.tiers.data()), c = static_cast<size_t>(shape.codebook);
    mgqe_tier tier = {};
    tier.codes = rows.data;
    tier.rows = rows.n;
    tier.row_bytes = shape.row_bytes;
    tier.bits = shape.bits;
    tier.num_subspaces = static_cast<int32_t>(shape.num_subspaces);
    if (layout_.mixed()) {
        tier.centroids = flat_books_[c];
        tier.layout = pieces_[g];
        tier.dtype = MGQE_FLOAT32;
        tier.book_floats = books_[c].size() + MGQE_BOOK_ROOM;
        if (!byte_books_.empty()) tier.bytes = byte_books_[c];
        tier.levels = level_bytes_[g];
    } else {
        tier.centroids = books_[c].data;
        tier.scales = scales_[c].as<float>();
        tier.dtype = layout_.centroids == Stored::kFloat32   ? MGQE_FLOAT32
                     : layout_.centroids == Stored::kFloat16 ? MGQE_FLOAT16
                                                             : MGQE_INT8;
        tier.pieces = static_cast<int32_t>(books_[c].shape[0]);
        tier.num_centroids = static_cast<int32_t>(books_[c].shape[1]);
        tier.width = static_cast<int32_t>(books_[c].shape[2]);
    }
    tiers_.push_back(tier);
    starts_.push_back(starts_.back() + rows.n);
}

const float* Table::row_squares(int32_t threads, int32_t* status) const {
    *status = MGQE_OK;
    if (!table_.matrix) return nullptr;
    const std::lock_guard<std::mutex> lock(squaring_);
    if (!squares_) {
        squares_memory_.reset(new float[static_cast<size_t>(table_.num_embeddings)]);
        *status = mgqe_row_squares(&table_, squares_memory_.get(), threads);
        if (*status == MGQE_OK) squares_ = squares_memory_.get();
    }
    return squares_;
}
