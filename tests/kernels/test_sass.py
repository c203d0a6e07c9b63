"""The static model reads kernels right: loops, hot paths, rates."""

import pytest

from benchmarks.disassembly import hottest, loops, parse
from benchmarks.sass import bound_of, bounds_of, is_plain
from benchmarks.toolchain import SOURCES, ToolMissing, compile_source

# A loop over tiles that is left at line 0x0c0, with two rounds of a counted loop, a branch over a
# mask, a predicate that is never true, and a second copy of the body that does less.
LISTING = """
.text._Z4tinyILi64EEvi:
        /*0000*/                   IMAD.MOV.U32 R9, RZ, RZ, RZ ;
.L_x_1:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64], !P1 ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*0030*/                   IMAD.MOV.U32 R8, RZ, RZ, RZ ;
.L_x_2:
        /*0040*/                   LDSM.16.M88.4 R12, [R3] ;
        /*0050*/                   HMMA.16816.F32 R20, R12, R16, R20 ;
        /*0060*/                   IADD3 R8, R8, 0x1, RZ ;
        /*0070*/                   ISETP.GE.U32.AND P0, PT, R8, 0x2, PT ;
        /*0080*/              @!P0 BRA `(.L_x_2) ;
        /*0090*/               @P2 BRA `(.L_x_3) ;
        /*00a0*/                   FSEL R20, R20, -INF , P3 ;
.L_x_3:
        /*00b0*/                   MUFU.EX2 R20, R20 ;
        /*00c0*/                   STS.64 [R3], R20 ;
        /*00d0*/               @P4 BRA `(.L_x_1) ;
.L_x_4:
        /*00e0*/                   HMMA.16816.F32 R20, R12, R16, R20 ;
        /*00f0*/               @P5 BRA `(.L_x_4) ;
        /*0100*/                   EXIT ;
.L_x_5:
        /*0110*/                   BRA `(.L_x_5);
"""


def test_the_hot_path_of_a_listing_is_counted():
    ((symbol, blocks),) = parse(LISTING).items()
    assert symbol == "_Z4tinyILi64EEvi"
    (outer,) = [loop for loop in loops(blocks) if loop.inside]
    assert [loop.trips for loop in (outer, *outer.inside)] == [None, 2]
    bound = bound_of(hottest(blocks), "tiny<64>", 80)
    assert bound.head_dim == 64
    # LDGSTS, LDS, MOV; twice LDSM, HMMA, IADD3, ISETP, BRA; BRA over the mask, MUFU, STS, BRA.
    assert (bound.tensor_cycles, bound.issue_cycles, bound.mufu_cycles) == (16, 17, 8)
    assert bound.shared_cycles == (512 + 2 * 512 + 256) // 32
    assert (bound.limit, bound.bound) == ("shared", 16 / 56)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("architecture", "least"), [(80, 1.0), (70, 0.6)])
def test_a_forward_kernel_is_bound_as_the_page_says(architecture: int, least: float):
    name = "sm80/forward_half.cu" if architecture == 80 else "sm70/forward.cu"
    try:
        entries = bounds_of(
            compile_source(SOURCES / "attention" / name, architecture), architecture
        )
    except ToolMissing as missing:
        pytest.skip(str(missing))
    plain = {entry.head_dim: entry for entry in entries if is_plain(entry.kernel)}
    assert sorted(plain) == [32, 64, 96, 128, 192, 256]
    for head_dim in (64, 128):
        entry = plain[head_dim]
        assert entry.bound >= least
        assert entry.tensor_cycles % (4 * head_dim) == 0  # whole products of warp tiles
        assert entry.counts["MUFU"] >= entry.tensor_cycles * 16 // (8 * head_dim)
