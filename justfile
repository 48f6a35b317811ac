# The one way to run things; the scripts behind it work without `just`.

# formatting and lints
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo clippy --workspace --test vm --locked -- -D warnings

# every test and drill; installs what is missing; needs root
test:
    scripts/test

# between virtual machines, on the kernel's own NVMe/TCP; needs root
test-vm *ARGS:
    scripts/test-vm {{ ARGS }}

# the simulation on its own: just sim SEEDS=100000
sim SEEDS="10000":
    SEEDS={{ trim_start_match(SEEDS, "SEEDS=") }} cargo test --release --locked --test simulation -- --nocapture

# Baton and Patroni under the same writer; needs root
bench *ARGS:
    scripts/bench {{ ARGS }}
