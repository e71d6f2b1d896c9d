"""A program as the TPUs' compiler prints it, small enough to count by hand."""

# Of a TPU: a scan over 3 layers of a product fused with what follows, whose weights are gathered in two
# parts of one channel; and one reduction that ends scattered.
TEXT = """\
HloModule jit_update, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%product (x: bf16[16,256,64], w: bf16[64,128,1]) -> bf16[16,256,128] {
  %x = bf16[16,256,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[64,128,1]{1,0,2:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[16,256,128]{2,1,0:T(8,128)(2,1)} convolution(%x, %w), window={size=1}, dim_labels=0bf_io0->0bf, metadata={op_name="jit(update)/jvp()/while/body/mlp_up/dot_general"}
}

%start (w: bf16[4,128]) -> bf16[64,128] {
  %w.1 = bf16[4,128]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,128]{1,0} all-gather(%w.1), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=16], device_ids=([16,2]T(1,0)) {'axis_1'}, dimensions={0}
}

%go-on (w: bf16[4,128]) -> bf16[64,128] {
  %w.2 = bf16[4,128]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,128]{1,0} all-gather(%w.2), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=16], device_ids=([16,2]T(1,0)) {'axis_1'}, dimensions={0}
}

%body (p: (s32[], bf16[16,256,64], bf16[4,128])) -> (s32[], bf16[16,256,64], bf16[4,128]) {
  %p = (s32[]{:T(128)}, bf16[16,256,64]{2,1,0:T(8,128)(2,1)}, /*index=2*/bf16[4,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x.3 = bf16[16,256,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w.3 = bf16[4,128]{1,0} get-tuple-element(%p), index=2
  %gather-start = bf16[64,128]{1,0} fusion(%w.3), kind=kCustom, calls=%start
  %gather = bf16[64,128]{1,0} fusion(%w.3), kind=kCustom, calls=%go-on
  %y = bf16[16,256,128]{2,1,0:T(8,128)(2,1)} fusion(%x.3, %gather), kind=kOutput, calls=%product, metadata={op_name="jit(update)/jvp()/while/body/gelu/mul"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %norm = bf16[16,256,64]{2,1,0} copy(%x.3), metadata={op_name="jit(update)/transpose(jvp())/while/body/checkpoint/rematted_computation/norm/mul"}, backend_config={"window_config":{"estimated_cycles":"20"}}
  ROOT %out = (s32[], bf16[16,256,64], bf16[4,128]) tuple(%i, %norm, %w.3)
}

%condition (p.1: (s32[], bf16[16,256,64], bf16[4,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %p.1 = (s32[]{:T(128)}, bf16[16,256,64]{2,1,0}, bf16[4,128]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

%all-reduce-scatter (g: f32[64,128]) -> f32[4,128] {
  %g = f32[64,128]{1,0} parameter(0)
  %all-reduce.9 = f32[64,128]{1,0} all-reduce(%g), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  %zero = u32[] constant(0)
  ROOT %slice = f32[4,128]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={4,128}
}

ENTRY %main (state: f32[64,128], init: (s32[], bf16[16,256,64], bf16[4,128])) -> f32[4,128] {
  %state = f32[64,128]{1,0} parameter(0)
  %init = (s32[], bf16[16,256,64]{2,1,0}, bf16[4,128]{1,0}) parameter(1)
  %while.1 = (s32[], bf16[16,256,64]{2,1,0}, bf16[4,128]{1,0}) while(%init), condition=%condition, body=%body
  %part = f32[8,128]{1,0} custom-call(%state), custom_call_target="Part"
  %all-reduce.8 = f32[64,128]{1,0} all-reduce(%state), channel_id=8, replica_groups=[2,8]<=[16], to_apply=%sum
  %moved = f32[8,128]{1,0} collective-permute(%part), channel_id=10, source_target_pairs={{0,1},{1,0}}
  ROOT %grad = f32[4,128]{1,0} fusion(%all-reduce.8), kind=kCustom, calls=%all-reduce-scatter, metadata={op_name="jit(update)/transpose(jvp())/dot_general"}, backend_config={"window_config":{"estimated_cycles":"5"}}
}
"""
