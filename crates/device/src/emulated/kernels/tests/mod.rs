//! Every kernel against a naive reference, over layouts and types; and the properties that engines rely on.

mod attention;
mod attention_refusals;
mod convolution;
mod distance;
mod elementwise;
mod fill;
mod flash;
mod foreach;
mod functions;
mod gradient;
mod index;
mod layer_norm;
mod linalg;
mod loss;
mod matmul;
mod moe;
mod norm;
mod operations;
mod pooling;
mod random;
mod reduce;
mod rotary_and_cache;
mod shape;
mod softmax;
mod sort;
mod table;
