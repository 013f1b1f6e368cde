#!/usr/bin/env bash
# LibriSpeech: T -> SN -> SS (papers/001). --mini true runs all of it on an embedded corpus, on a CPU.
set -euo pipefail
corpus=librispeech
experiments=teacher,s5,s5_stream,s5_single
mini_experiments=teacher,sn,ss,single
# After so few updates the teacher finds no words in unlabelled audio: students are given transcripts as well.
rehearse_settings=(optim.updates=12 optim.epochs=0 data.valid_utterances=4 data.max_duration=12 "data.train=[labelled,unlabelled]"
  saving.every_updates=4 lm.optim.updates=4 lm.optim.epochs=0 lm.rescoring.nbest=5 lm.rescoring.beam=4)
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"

begin "$@"
run 0 "corpus, manifests, cut sets" prepare_corpus.py
run 1 "Fbank features" compute_fbank.py
run 2 "lexicon and units" prepare_lang.py
run 3 "n-gram language models" train_ngrams.py
run 4 "denominator and decoding graph" compile_graphs.py
run 5 "teacher's first weights" init_teacher.py
run 6 "teacher, LF-MMI on the labelled part" train.py --stage 6
run 7 "teacher's numerators for the unlabelled part" label_unlabelled.py
run 8 "T -> SN" train.py --stage 8
run 9 "SN -> SS" train.py --stage 9
run 10 "decoding" decode.py
run 11 "Transformer LM and rescoring" rescore.py
run 12 "export, real-time factor and latency" export.py
run 13 "report" report.py
finish
