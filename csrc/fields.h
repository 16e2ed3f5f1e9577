// The operands of the kernels, each stated once: X(type, name), in the order in which Python hands them over.
//
// attention.h makes the members of Layout and Problem of these lists; bindings.cpp reads them, one by one, from tuples,
// and exports their names and kinds as locant._native.LAYOUT, FORWARD and GRADIENTS. Python states them in
// src/locant/layout.py and src/locant/operands.py, and compares: where a name, a kind or the order differs, the module
// is not loaded. So a new operand is a line here, a line there, and the kernels that read it.
#pragma once

// Who meets whom. Cell c holds the queries query[query_start[c] .. query_start[c + 1]), and the keys likewise.
// bias(i, j) = table[query_place[i] - key_place[j]] for tokens with a place, which come after the prefix.
#define LOCANT_LAYOUT(X)                                                                                             \
    X(int64_t, cells)                                                                                                \
    X(int64_t, queries)             /* tokens in all */                                                              \
    X(int64_t, keys)                                                                                                 \
    X(int64_t, query_prefix)        /* tokens below have no place */                                                 \
    X(int64_t, key_prefix)                                                                                           \
    X(int64_t, longest)             /* of the cells: how many queries, and keys */                                   \
    X(int64_t, longest_keys)                                                                                         \
    X(int64_t, orders)              /* key j is visible to i if key_rank[o][j] <= query_rank[o][i] for all o */      \
    X(bool, shared_keys)            /* a key may be in several cells, or in none */                                  \
    X(const int32_t*, query)                                                                                         \
    X(const int32_t*, query_start)                                                                                   \
    X(const int32_t*, key)                                                                                           \
    X(const int32_t*, key_start)                                                                                     \
    X(const int32_t*, kind)         /* [cells]; cells of one kind are translates of each other, stored one by one */ \
    X(const int32_t*, query_place)  /* [queries]; not read without a table */                                        \
    X(const int32_t*, key_place)                                                                                     \
    X(const int64_t*, query_rank)   /* [orders][queries] */                                                          \
    X(const int64_t*, key_rank)     /* [orders][keys] */                                                             \
    X(int64_t, axes)                /* along which content has vectors; 0 without */                                 \
    X(const int32_t*, query_at)     /* [axes][queries]: coordinates; not read of prefix tokens */                    \
    X(const int32_t*, key_at)       /* [axes][keys] */                                                               \
    X(const int32_t*, axis)         /* [axes][AXIS_NUMBERS], in the order of AxisNumber */

// One attention problem: what both passes read, and `out` and `lse`, which forward writes and backward reads.
// "Real" is double where q is float64, else float.
#define LOCANT_FORWARD(X)                                                                                            \
    X(Dtype, dtype)                 /* of q, k, v, out and their gradients */                                        \
    X(int64_t, batch)                                                                                                \
    X(int64_t, heads)                                                                                                \
    X(int64_t, kv_heads)                                                                                             \
    X(int64_t, head_dim)                                                                                             \
    X(int64_t, value_dim)                                                                                            \
    X(Rows, q)                                                                                                       \
    X(Rows, k)                                                                                                       \
    X(Rows, v)                                                                                                       \
    X(Rows, out)                                                                                                     \
    X(void*, lse)                   /* Real [batch, heads, queries] */                                               \
    X(double, scale)                                                                                                 \
    X(const void*, table)           /* Real [heads, entries]; null without a bias */                                 \
    X(int64_t, entries)                                                                                              \
    X(const void*, prefix_bias)     /* Real [3, heads], rows as in PrefixBias; null: 0 */                            \
    X(Rows, content)                /* what meets the vectors; null: q */                                            \
    X(const void*, vectors)         /* Real [vector_heads, offsets, head_dim], axis by axis; null without content */ \
    X(int64_t, vector_heads)        /* 1: all heads meet the same */                                                 \
    X(int64_t, offsets)             /* of all axes */                                                                \
    X(const void*, vector_bias)     /* Real [vector_heads, offsets]; null: 0 */                                      \
    X(double, content_scale)                                                                                         \
    X(PerSample<uint8_t>, valid)    /* of keys: 1 is a real one; null if all are */                                  \
    X(PerSample<int64_t>, query_id) /* segments: equal ids see each other; null without */                           \
    X(PerSample<int64_t>, key_id)                                                                                    \
    X(int64_t, free_queries)        /* prefix tokens that belong to every segment */                                 \
    X(int64_t, free_keys)                                                                                            \
    X(double, dropout)              /* probability; 0 for none */                                                    \
    X(uint64_t, seed)

// What backward reads and writes besides.
#define LOCANT_GRADIENTS(X)                                                                                          \
    X(Rows, dout)                                                                                                    \
    X(const void*, dlse)            /* Real [batch, heads, queries]; null: 0 */                                      \
    X(Rows, dq)                                                                                                      \
    X(Rows, dk)                                                                                                      \
    X(Rows, dv)                                                                                                      \
    X(void*, dtable)                /* Real [heads, entries]; null if nobody learns it */                            \
    X(void*, dprefix_bias)          /* Real [3, heads], or null */                                                   \
    X(Rows, dcontent)               /* null: it is part of dq, or nobody wants it */                                 \
    X(void*, dvectors)              /* Real [heads, offsets, head_dim]; null if nobody learns them */                \
    X(void*, dvector_bias)          /* Real [heads, offsets], or null */

// --- linear maps (linear.h) -------------------------------------------------------------------------------------------

// Each is of one dtype, float or bfloat16: rows, weights, and what is written; `float` says what always is a float.

// A weight to pack: element (k, n), which takes input k to output n, lies at k * input_step + n * output_step.
#define LOCANT_WEIGHT(X)                                                                                             \
    X(Dtype, dtype)                                                                                                  \
    X(int64_t, inputs)                                                                                               \
    X(int64_t, outputs)                                                                                              \
    X(int64_t, input_step)                                                                                           \
    X(int64_t, output_step)                                                                                          \
    X(const void*, packed_from)                                                                                      \
    X(void*, packed)                /* packed_numbers of them */

// y = act(n(x) W + b) ∘ gain + r. `before` is what the activation takes, for the backward pass. Behind the product may
// come a LayerNorm, if there is no activation; or the first `united` outputs are brought to length 1, `unit` at a time.
#define LOCANT_LINEAR(X)                                                                                             \
    X(Dtype, dtype)                                                                                                  \
    X(int64_t, rows)                                                                                                 \
    X(int64_t, inputs)                                                                                               \
    X(int64_t, outputs)                                                                                              \
    X(int64_t, activation)                                                                                           \
    X(const void*, x)               /* [rows, inputs] */                                                             \
    X(bool, centred)                /* n is a LayerNorm; else a RMSNorm */                                           \
    X(const void*, scale)           /* float [inputs], of the norm n; null: n(x) = x */                              \
    X(const void*, shift)           /* float [inputs], or null */                                                    \
    X(double, epsilon)                                                                                               \
    X(const void*, weight)          /* packed */                                                                     \
    X(const void*, bias)            /* float [outputs], or null */                                                   \
    X(const void*, scale_behind)    /* float [outputs], of a LayerNorm behind the product; null: none */             \
    X(const void*, shift_behind)    /* float [outputs], or null */                                                   \
    X(double, epsilon_behind)                                                                                        \
    X(int64_t, unit)                                                                                                 \
    X(int64_t, united)              /* 0: none */                                                                    \
    X(const void*, gain)            /* float [outputs], before r is added; or null */                                \
    X(const void*, residual)        /* [rows, outputs], or null */                                                   \
    X(void*, before)                /* [rows, outputs], or null */                                                   \
    X(void*, y)                     /* [rows, outputs] */

// y = N(act(n(x) W1 + b1) W2 + b2) ∘ gain + r, N a LayerNorm or nothing.
#define LOCANT_PERCEPTRON(X)                                                                                         \
    X(Dtype, dtype)                                                                                                  \
    X(int64_t, rows)                                                                                                 \
    X(int64_t, inputs)                                                                                               \
    X(int64_t, hidden)                                                                                               \
    X(int64_t, outputs)                                                                                              \
    X(int64_t, activation)                                                                                           \
    X(const void*, x)               /* [rows, inputs] */                                                             \
    X(bool, centred)                /* n is a LayerNorm; else a RMSNorm */                                           \
    X(const void*, scale)           /* float [inputs], of the norm n; null: n(x) = x */                              \
    X(const void*, shift)           /* float [inputs], or null */                                                    \
    X(double, epsilon)                                                                                               \
    X(const void*, weight1)         /* packed */                                                                     \
    X(const void*, bias1)           /* float [hidden], or null */                                                    \
    X(const void*, weight2)         /* packed */                                                                     \
    X(const void*, bias2)           /* float [outputs], or null */                                                   \
    X(const void*, scale_behind)    /* float [outputs], of a LayerNorm behind the product; null: none */             \
    X(const void*, shift_behind)    /* float [outputs], or null */                                                   \
    X(double, epsilon_behind)                                                                                        \
    X(const void*, gain)            /* float [outputs], before r is added; or null */                                \
    X(const void*, residual)        /* [rows, outputs], or null */                                                   \
    X(void*, before)                /* [rows, hidden], what the activation takes; or null */                         \
    X(void*, y)                     /* [rows, outputs] */

// dW (+)= dYᵀ X and db (+)= the sum of dY over rows.
#define LOCANT_WEIGHT_GRADIENT(X)                                                                                    \
    X(Dtype, dtype)                                                                                                  \
    X(int64_t, rows)                                                                                                 \
    X(int64_t, inputs)                                                                                               \
    X(int64_t, outputs)                                                                                              \
    X(bool, added)                  /* to what dw and db hold */                                                     \
    X(const void*, dy)              /* [rows, outputs] */                                                            \
    X(const void*, x)               /* [rows, inputs] */                                                             \
    X(void*, dw)                    /* float [outputs, inputs], or null */                                           \
    X(void*, db)                    /* float [outputs], or null */

// Backward through y = act(h) W2, h = x W1: dh = (dY W2ᵀ) ∘ act'(h), act(h) once more, and dx = dh W1ᵀ.
#define LOCANT_HIDDEN_GRADIENT(X)                                                                                    \
    X(Dtype, dtype)                                                                                                  \
    X(int64_t, rows)                                                                                                 \
    X(int64_t, inputs)                                                                                               \
    X(int64_t, hidden)                                                                                               \
    X(int64_t, outputs)                                                                                              \
    X(int64_t, activation)                                                                                           \
    X(const void*, dy)              /* [rows, outputs] */                                                            \
    X(const void*, before)          /* [rows, hidden], h */                                                          \
    X(const void*, turned1)         /* packed: W1 from hidden to inputs */                                           \
    X(const void*, turned2)         /* packed: W2 from outputs to hidden */                                          \
    X(void*, dh)                    /* [rows, hidden] */                                                             \
    X(void*, after)                 /* [rows, hidden], act(h) */                                                     \
    X(void*, dx)                    /* [rows, inputs], or null */
