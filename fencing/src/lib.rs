//! What a fence must prove, and the fences that prove it.
