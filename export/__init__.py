"""mimo_edge.export: released checkpoints -> bundle. Runs on a workstation; the device never imports it.

checkpoint (config + tensors + tokenizer, checked)  ->  bundle_writer  ->  a bundle folder
"""
