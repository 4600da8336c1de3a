"""What to cite, as BibTeX."""

SIMMIM = """@inproceedings{xie2021simmim,
  title={SimMIM: A Simple Framework for Masked Image Modeling},
  author={Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and Dai, Qi
    and Hu, Han},
  booktitle={International Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2022}
}"""
SWIN = """@inproceedings{liu2021swin,
  title={Swin Transformer: Hierarchical Vision Transformer using Shifted Windows},
  author={Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and Zhang, Zheng and Lin, Stephen
    and Guo, Baining},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2021}
}"""
SWINV2 = """@inproceedings{liu2021swinv2,
  title={Swin Transformer V2: Scaling Up Capacity and Resolution},
  author={Liu, Ze and Hu, Han and Lin, Yutong and Yao, Zhuliang and Xie, Zhenda and Wei, Yixuan and Ning, Jia
    and Cao, Yue and Zhang, Zheng and Dong, Li and Wei, Furu and Guo, Baining},
  booktitle={International Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2022}
}"""
UPERNET = """@inproceedings{xiao2018unified,
  title={Unified Perceptual Parsing for Scene Understanding},
  author={Xiao, Tete and Liu, Yingcheng and Zhou, Bolei and Jiang, Yuning and Sun, Jian},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2018}
}"""
MMPRETRAIN = """@misc{2023mmpretrain,
  title={OpenMMLab's Pre-training Toolbox and Benchmark},
  author={MMPreTrain Contributors},
  howpublished={\\url{https://github.com/open-mmlab/mmpretrain}},
  year={2023}
}"""

ARCHITECTURES = {"swin": SWIN, "swinv2": SWINV2}
